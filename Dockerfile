# nextclick in two images, each a virtual environment in /opt/nextclick, run by a user who owns nothing but /data:
#
#   docker build --target api .      the bare installation: serve, and the commands that publish, show and ask; no torch
#   docker build --target worker .   with the worker's packages: worker, and demo
#
# PIP_ARGS reaches the installation of the dependencies. Where the index offers PyTorch with CUDA by default (some
# gigabytes), it can name PyTorch's index of CPU builds: --build-arg PIP_ARGS="--extra-index-url URL". WORKER_PACKAGES are
# packages that the worker's image gets besides, such as the one of an object store for NEXTCLICK_SHARED_CHECKPOINTS:
# --build-arg WORKER_PACKAGES=s3fs.
#
# The base is a version of Python. To have the very same bytes each time, name its digest, as `docker buildx imagetools
# inspect` shows it: --build-arg PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:...
#
# Each image says what is in it: `cat /opt/nextclick/sbom.cdx.json` (CycloneDX).

ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
FROM ${PYTHON_IMAGE} AS base

# The dependencies alone: this layer is made anew when they change, not with every line of code. pip works on the
# environment from outside, so that it is no part of what is shipped; nor are the tools that are installed beside it.
FROM base AS dependencies
ARG PIP_ARGS=""
WORKDIR /build
RUN python -m venv --without-pip /opt/nextclick
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt deploy/image/slim ./
RUN python -m pip install --no-cache-dir --constraint constraints.txt setuptools cyclonedx-bom
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" >requirements.txt \
 && python -m pip --python /opt/nextclick/bin/python install --no-cache-dir --no-compile --constraint constraints.txt --requirement requirements.txt ${PIP_ARGS} \
 && ./slim /opt/nextclick

# The package itself, under a prefix of its own that is laid over the environment below.
FROM dependencies AS package
COPY README.md LICENSE ./
COPY stream/ stream/
COPY model/ model/
COPY online/ online/
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && python -m pip --python /opt/nextclick/bin/python install --no-deps --no-index --prefix /opt/package dist/*.whl

FROM dependencies AS api-sbom
COPY --from=package /opt/package /opt/nextclick
RUN cyclonedx-py environment --output-reproducible --output-file /opt/sbom.cdx.json /opt/nextclick/bin/python

FROM base AS runtime
RUN groupadd --gid 10001 nextclick \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin nextclick \
 && install --directory --owner nextclick --group nextclick /data
ENV PATH=/opt/nextclick/bin:$PATH PYTHONUNBUFFERED=1 NEXTCLICK_DATA_DIR=/data
WORKDIR /data
CMD ["nextclick", "--help"]

FROM runtime AS api
COPY --from=dependencies /opt/nextclick /opt/nextclick
COPY --from=package /opt/package /opt/nextclick
COPY --from=api-sbom /opt/sbom.cdx.json /opt/nextclick/
# Of thousands of files a few hundred are ever imported: those are compiled here, as nothing can be written later.
RUN python -c "import online.cli, online.api.serve, online.api.processes"
USER 10001:10001

FROM dependencies AS worker-dependencies
ARG PIP_ARGS=""
ARG WORKER_PACKAGES=""
RUN python -c "import tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*extras['worker'], *extras['embedded'], *'${WORKER_PACKAGES}'.split(), sep='\n')" >requirements.txt \
 && python -m pip --python /opt/nextclick/bin/python install --no-cache-dir --no-compile --constraint constraints.txt --requirement requirements.txt ${PIP_ARGS} \
 && ./slim /opt/nextclick

FROM worker-dependencies AS worker-sbom
COPY --from=package /opt/package /opt/nextclick
RUN cyclonedx-py environment --output-reproducible --output-file /opt/sbom.cdx.json /opt/nextclick/bin/python

FROM runtime AS worker
COPY --from=worker-dependencies /opt/nextclick /opt/nextclick
COPY --from=package /opt/package /opt/nextclick
COPY --from=worker-sbom /opt/sbom.cdx.json /opt/nextclick/
# Loops are compiled for the kind of processor that builds the image; on another kind the worker does it at its start.
RUN python -m online.learner.facts.warm \
 && python -c "import online.cli, online.worker.main, online.lifecycle.finetune_job"
USER 10001:10001
