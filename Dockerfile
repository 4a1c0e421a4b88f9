# Two images:
#
#     docker build --target operator --tag registry.example.com/camel-ray/operator:0.1.0 .
#     docker build --target trainer --tag registry.example.com/camel-ray/trainer:0.1.0 .
#
# `operator` watches pipelines: no torch, no Ray. `trainer` is what stage pods run. In both, dependencies come in the versions
# of constraints.txt and lie in a layer below our own code, so a change of code rebuilds seconds of it. Both run as user
# 1000 with a read-only root file system; only /tmp is written to. tests/e2e/test_images.py builds and checks them.
ARG PYTHON_BASE=python:3.11-slim
# torch brings its own CUDA libraries; the compiler in `devel` is for DeepSpeed, which builds its CPU optimizer for ZeRO
# offload when it is first used. For pods without GPUs: --build-arg BASE=python:3.11-slim
ARG BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04

# --- uv, and our own code as a wheel ---------------------------------------------------------------------------------
FROM ${PYTHON_BASE} AS uv
# A mirror of PyPI; empty: PyPI itself.
ARG PIP_INDEX_URL
# The machine's certificates count, so a mirror behind a private authority works.
ENV UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1 UV_NO_CACHE=1 UV_NO_PROGRESS=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir --disable-pip-version-check uv==0.13.9

FROM uv AS wheel
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY camel_ray camel_ray
RUN UV_DEFAULT_INDEX="${PIP_INDEX_URL:-https://pypi.org/simple}" \
    /opt/uv/bin/uv build --quiet --wheel --build-constraints constraints.txt --out-dir /wheel

# --- operator --------------------------------------------------------------------------------------------------------
FROM uv AS operator-environment
COPY pyproject.toml constraints.txt /src/
RUN UV_DEFAULT_INDEX="${PIP_INDEX_URL:-https://pypi.org/simple}" \
    && export UV_DEFAULT_INDEX \
    && /opt/uv/bin/uv venv --quiet --python python3 /opt/camel-ray \
    && /opt/uv/bin/uv pip install --quiet --python /opt/camel-ray/bin/python --compile-bytecode \
        --requirements /src/pyproject.toml --constraints /src/constraints.txt
COPY --from=wheel /wheel /wheel
RUN /opt/uv/bin/uv pip install --quiet --python /opt/camel-ray/bin/python --compile-bytecode --no-deps --offline /wheel/*.whl

FROM ${PYTHON_BASE} AS operator
COPY --from=operator-environment /opt/camel-ray /opt/camel-ray
ENV PATH=/opt/camel-ray/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 1000:1000
EXPOSE 8080 8443
# Kubernetes has its own probes (the chart sets them); this is for whoever runs the image by hand.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "camel_ray.operator.main"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="camel-ray operator" \
    org.opencontainers.image.description="Turns CamelPipelines into Ray jobs on Kubernetes" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

# --- trainer ---------------------------------------------------------------------------------------------------------
FROM ${BASE} AS trainer
ARG PIP_INDEX_URL
# `none` leaves out everything but our own code: for machines that bring an environment with torch and Ray by a mount.
ARG DEPENDENCIES=install
ENV PATH=/opt/camel-ray/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
# A name for user 1000: torch asks for it. Python and a C compiler where the base lacks them: Triton compiles at run time.
RUN { getent passwd 1000 || useradd --uid 1000 --home-dir /tmp --no-create-home camel-ray; } >/dev/null \
    && if [ "$DEPENDENCIES" = install ]; then \
        apt-get update --quiet \
        && apt-get install --yes --quiet --no-install-recommends ca-certificates g++ gcc libc6-dev python3 python3-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=uv /opt/uv/bin/uv /usr/local/bin/uv
COPY pyproject.toml constraints.txt /src/
RUN export UV_DEFAULT_INDEX="${PIP_INDEX_URL:-https://pypi.org/simple}" UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1 UV_NO_CACHE=1 \
    && uv venv --quiet --python python3 /opt/camel-ray \
    && if [ "$DEPENDENCIES" = install ]; then \
        uv pip install --quiet --python /opt/camel-ray/bin/python --compile-bytecode \
            --requirements /src/pyproject.toml --extra train --extra s3 --extra gcs --constraints /src/constraints.txt; \
    fi
COPY --from=wheel /wheel /wheel
RUN uv pip install --quiet --python /opt/camel-ray/bin/python --compile-bytecode --no-deps --offline --no-cache /wheel/*.whl
USER 1000:1000
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="camel-ray trainer" \
    org.opencontainers.image.description="What the pods of a CamelPipeline run: torch, DeepSpeed, Ray and camel-ray" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
