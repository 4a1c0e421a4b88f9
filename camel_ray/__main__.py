"""`python -m camel_ray` is the same as `camel-ray`."""

from camel_ray.cli.main import main

if __name__ == "__main__":
    main()
