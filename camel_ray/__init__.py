"""camel-ray: one YAML file from raw text to a PPO-tuned, evaluated language model.

The public names are the resource (`CamelPipeline`), its loader and the exceptions. Everything that needs torch or ray
is imported from its own subpackage, so `import camel_ray` stays fast enough for a command line.
"""

from camel_ray.api.load import load_pipeline
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.errors import CamelError, PermanentError, RetryableError
from camel_ray.version import __version__

__all__ = [
    "CamelError",
    "CamelPipeline",
    "PermanentError",
    "RetryableError",
    "__version__",
    "load_pipeline",
]
