"""A stand-in for KubeRay 1.7.0, and for the machines below it where a real apiserver has no kubelet.

KubeRay itself is no part of the rig, so this process owns RayJobs instead and does what KubeRay was seen to do: states,
reasons, messages and their order, the finalizer that takes a spec over, entry points that run twice, statuses that stay
for ever. It knows nothing of the operator under test: it reads objects from the API and writes objects to it.

    rayjob      RayJobs: the state machine, deadlines, suspension, deletion
    raycluster  RayClusters: pods, conditions, services
    manifests   what KubeRay writes, as plain values
    pods        Ray's pods, as plain values: their commands, probes, sidecars
    job_api     what a head's dashboard knows of jobs: asked over HTTP
    machines    joins what follows, where machines are played
    kubelet     one Node, and the pods that the real scheduler binds to it
    programs    what the containers of those pods do: played by a script, or run as processes of this machine
    processes   the environment, volumes and tokens of a container that is run for real
    logs        what `kubectl logs` reads
    dashboard   the Ray jobs inside each head
    script      how this world behaves where it shall not simply succeed
    api         the apiserver: requests, and a copy of the objects
    world       joins the controllers with what is below them, and drives them
    launch      starts the process for a test

With `--real-pods` a kubelet runs what is written: Ray, its dashboard, its autoscaler and the submitter are real, and
only KubeRay's own decisions are played.

Everything but watches happens in one thread. Not played, and refused as ValidationFailed: SidecarMode, clusterSelector,
deletionStrategy, GCS fault tolerance, `resources` of groups. Not played either: hosts of a replica as one unit,
runtimeEnvYAML and metadata of a job, and without a kubelet the autoscaler's decisions (its sidecar is there, but a
group keeps its `replicas`).
"""
