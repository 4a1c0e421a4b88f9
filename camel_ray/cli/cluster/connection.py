"""How the commands reach a cluster, and how what goes wrong there becomes one sentence that says what to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camel_ray.cli.console import DebugOption
from camel_ray.errors import CamelError, PermanentError, RetryableError, SpecError

if TYPE_CHECKING:
    from camel_ray.api.status import PipelineStatus
    from camel_ray.operator.kube.client import Client
    from camel_ray.operator.kube.errors import KubeError

Object = Mapping[str, Any]
PANEL = "Pipelines on Kubernetes"
"""Heading of the commands in `camel-ray --help`."""
MANAGER = "camel-ray-cli"
"""Field manager of what the commands write."""

PipelineName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the pipeline.", show_default=False)]


@dataclass(frozen=True)
class Cluster:
    """An API server, and the namespace a command works in."""

    client: Client
    namespace: str
    server: str

    def pipeline(self, name: str) -> Object:
        """The CamelPipeline. Raises PermanentError if there is none."""
        from camel_ray.operator.kinds import CAMEL_PIPELINE
        from camel_ray.operator.kube.errors import NotFound

        try:
            return self.client.get(CAMEL_PIPELINE, name, self.namespace)
        except NotFound as error:
            raise self._absent(name, error) from error

    def _absent(self, name: str, error: KubeError) -> CamelError:
        if _kind_is_unknown(error):
            return _no_kind()
        return PermanentError(
            f"there is no pipeline '{name}' in namespace '{self.namespace}'; "
            "`camel-ray get -A` lists those of all namespaces"
        )


@dataclass(frozen=True)
class Reach:
    """How the command line says to reach a cluster; None where it says nothing."""

    namespace: str | None
    context: str | None
    kubeconfig: str | None

    @contextmanager
    def connect(self, namespace: str | None = None) -> Iterator[Cluster]:
        """The cluster of a kubeconfig, or of the pod this runs in where there is none.

        `namespace`: instead of the context's, where the command line says none. Within it errors of the API server
        become a CamelError: PermanentError (kubeconfig, rights, operator not installed), SpecError (the server refuses
        the object), RetryableError (no answer).
        """
        from camel_ray.operator.kube.client import Client
        from camel_ray.operator.kube.config import ConfigError
        from camel_ray.operator.kube.errors import KubeError

        try:
            config = _config(self.context, self.kubeconfig)
            client = Client(config, manager=MANAGER)
        except ConfigError as error:
            raise PermanentError(str(error).rstrip(".")) from error
        try:
            chosen = self.namespace or namespace or config.namespace
            try:
                yield Cluster(client, chosen, config.server)
            except ConfigError as error:  # a login plugin that is asked again
                raise PermanentError(str(error).rstrip(".")) from error
            except KubeError as error:
                raise explained(error, chosen, config.server) from error
        finally:
            client.close()


def add_command(app: typer.Typer, command: Callable[..., None]) -> None:
    """Add a command that talks to a cluster: its first parameter, `reach`, becomes the options of `_reach`."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "reach"]
    shared = inspect.signature(_reach, eval_str=True).parameters

    def run(**given: Any) -> None:
        command(_reach(**{name: given.pop(name) for name in shared}), **given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([*own, *shared.values()])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *shared.values())}
    app.command(rich_help_panel=PANEL)(run)


def _reach(
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace", "-n", metavar="NAMESPACE", help="Namespace. Default: that of the kubeconfig's context."
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option("--context", metavar="NAME", help="Context of the kubeconfig. Default: its current one."),
    ] = None,
    kubeconfig: Annotated[
        str | None, typer.Option("--kubeconfig", metavar="FILE", help="Default: $KUBECONFIG, or ~/.kube/config.")
    ] = None,
    debug: DebugOption = False,
) -> Reach:
    return Reach(namespace, context, kubeconfig)


def _config(context: str | None, kubeconfig: str | None) -> Any:
    from camel_ray.operator.kube.config import ConfigError, from_kubeconfig, in_cluster

    try:
        return from_kubeconfig(kubeconfig, context)
    except ConfigError:
        if kubeconfig or context:
            raise
        try:
            return in_cluster()
        except ConfigError:
            pass
        raise


def explained(error: KubeError, namespace: str, server: str) -> CamelError:
    """The error of the API server as ours: what is wrong, and what to do."""
    from camel_ray.operator.kube import errors as kube

    words = error.message.rstrip(".")
    match error:
        case kube.NotFound() if _kind_is_unknown(error):
            return _no_kind()
        case kube.NotFound() if "namespaces" in words:
            return PermanentError(
                f"there is no namespace '{namespace}'; `kubectl create namespace {namespace}` makes it"
            )
        case kube.Unauthorized():
            return PermanentError(f"{server} does not accept your login; log in again, or choose another --context")
        case kube.Forbidden():
            return PermanentError(
                f"{words}; ask for the cluster role `edit` (to look only: `view`) in namespace '{namespace}'"
            )
        case kube.Invalid() if error.causes:
            return SpecError(*(_sentence(cause) for cause in error.causes))
        case kube.Invalid():
            return SpecError(words)
        case kube.Unreachable():
            return RetryableError(
                f"{server} cannot be reached ({words}); check the network, or choose another --context"
            )
        case kube.TooManyRequests() | kube.ServerError():
            return RetryableError(f"{words}; try again in a moment")
    return PermanentError(words)


def transient(error: KubeError) -> bool:
    """Whether waiting may help."""
    from camel_ray.operator.kube import errors as kube

    return isinstance(error, kube.Unreachable | kube.TooManyRequests | kube.ServerError | kube.Gone)


def not_yet_sure(error: KubeError) -> bool:
    """Whether an API server that has just started may say so although it is not true."""
    from camel_ray.operator.kube import errors as kube

    return isinstance(error, kube.Forbidden | kube.Unauthorized) or (
        isinstance(error, kube.NotFound) and _kind_is_unknown(error)
    )


def status_of(pipeline: Object) -> PipelineStatus:
    """What the operator has written. A pipeline it has not seen yet is Pending."""
    from camel_ray.api.status import PipelineStatus

    return PipelineStatus.model_validate(pipeline.get("status") or {})


def _kind_is_unknown(error: KubeError) -> bool:
    """Whether not an object is missing but the kind: the first is said where no version of it exists either."""
    return "404 page not found" in error.message or "could not find the requested resource" in error.message


def _no_kind() -> CamelError:
    return PermanentError(
        "the cluster does not know CamelPipelines; install the operator: `helm install camel-ray charts/camel-ray`, or "
        "`kubectl apply --server-side -f manifests/install.yaml`"
    )


def _sentence(cause: str) -> str:
    """`field: sentence`, as `camel-ray validate` says it, without what the API server puts around a rule's sentence."""
    field, _, words = cause.partition(": ")
    for start in ("Invalid value: ", "Forbidden: ", "Required value: "):
        words = words.removeprefix(start)
    for kind in ('"object": ', '"array": ', '"string": ', '"integer": ', '"number": '):  # a value too long to be shown
        words = words.removeprefix(kind)
    return f"{field}: {words}" if field and field != "<nil>" else words
