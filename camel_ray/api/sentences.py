"""What is said when a rule over several fields does not hold, one template per rule.

`rules.py` fills them for `camel-ray validate`, `cel.py` turns them into CEL for the apiserver: both say the same.
Every template here is used by `rules.py`, and is either mirrored in `cel.py` or listed there with the reason why not.
"""

from __future__ import annotations

NAME_TAKEN = "the name '{name}' is taken by number {number}; give each its own name"
GROUP_RANGE = "minReplicas {low} is above maxReplicas {high}"
GROUP_SIZE = "set either replicas, or minReplicas and maxReplicas"
ENV_SOURCE = "set exactly one of value and secret"
ENV_TAKEN = "the variable '{name}' is set by the operator; leave it out"
ENV_SECRET = (
    "the value of '{name}' would be read by everybody who may read the pipeline; put it into a Secret, and write "
    "secret: {{name: ..., key: ...}} instead of value"
)
CREDENTIALS = (
    "holds credentials, which everybody sees who may read the pipeline; leave them out and give them as environment "
    "variables (on a cluster: from a Secret, by cluster.envFromSecrets)"
)
VOLUME_SOURCE = "set exactly one of claim, secret, configMap and memory"
VOLUME_TAKEN = "the path '{name}' is mounted by number {number} already; give each volume its own"
VOLUME_RESERVED = (
    "'{path}' hides or is hidden by {reserved}, which the operator mounts; choose another path, such as /data"
)
POD_KEY = "the key '{key}' is set by the operator, Ray or Kueue; leave it out"
POD_KEY_FORM = (
    "'{key}' is no key of a label or annotation; write name or example.com/name, the name with at most 63 characters"
)

MEMBER_EMPTY = "is empty; write the fields of the stage under it (`camel-ray explain {kind}`)"
MEMBER_NONE = "a stage needs one member that says what it does: {kinds}"
MEMBER_SEVERAL = "a stage has exactly one member, this one has {kinds}; make it two stages"
NEEDS_ITSELF = "stage '{name}' cannot need itself"
NEEDS_LATER = "'{name}' comes later; a stage can only use earlier ones (so there are no cycles): move '{name}' up"
NEEDS_UNKNOWN = "there is no stage '{name}'."
WRONG_ARTIFACT = "stage '{name}' makes a {made}, but this field takes a {wanted}"
NO_MODEL = "there is no model to start from: set `model` here or in the pipeline's spec, or add a pretrain stage"
MODEL_EMPTY = "a model needs a `source`, or a `config` to build it from scratch"
MODEL_TYPE = "a model from scratch needs a `model_type` in its `config`, such as llama"
NO_TOKENIZER = "a model from scratch needs a tokenizer: set `tokenizer`, or add a tokenizer stage before"
MODEL_UNTRAINED = "a model from scratch knows nothing yet; train one in a stage before {kind}"
WORKERS_RANGE = "min {low} is above max {high}"
WORKERS_NONE = "a stage needs at least 1 worker"
BATCH = "batchSize {batch} is not a multiple of workers x microBatchSize = {workers} x {micro}; try {better}"
NO_GROUP = "there is no group '{name}' in spec.cluster.groups."
EARLY_STOPPING = "earlyStopping needs evaluateEverySteps, the steps between two validations"
OFFLOAD_ALL = "offload: all moves parameters, which needs zero: 3"
OFFLOAD_OPTIMIZER = "offload: optimizer needs zero: 1, 2 or 3"
TOKENIZER_SOURCE = "set `data` to train a tokenizer, or `source` to load one"
NOTHING_TO_DO = "the stage needs nothing and names nothing, so it has nothing to work on"

REWARD_NONE = "set reward.model, reward.function, reward.answer or reward.http, or an environment"
SAMPLES = "{advantage} compares several answers to one prompt; set samplesPerPrompt to at least 2"
UNIFORM_GROUPS = "skipUniformGroups is for the advantages rloo and group, which compare answers to one prompt"
KL_LOSS = "as a loss k1 has a gradient that is 0 on average, so it holds nothing; use k2 or k3"
OVERLONG = "overlongBuffer {buffer} is above sampling.maxResponseLength {longest}"
HTTP_URL = "'{url}' is no address of a web service; write http(s)://..."
ROLLOUT_ALONE = (
    "{name}: {value} needs rollout in processes of its own; set placement: split, or a list in which rollout stands "
    "alone"
)
IMPORTANCE = "low {low} is above high {high}"
ROLE_TWICE = "role '{role}' is placed more than once"
ROLE_NOWHERE = "{roles} no place; add to one of the groups"
