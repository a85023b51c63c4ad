# syntax=docker/dockerfile:1
# The medae service. Targets: cpu (the last, so the default) and gpu.
#   docker build --target cpu -t medae:cpu .
#   docker build --target gpu -t medae:gpu .
# No model and no secret is inside: both are mounted (see docker-compose.yml and docs/deploy.md).
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# ---- what both environments have in common; versions are those of constraints.txt, nothing else is chosen
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PATH=/opt/medae/bin:$PATH
RUN ["python3", "-m", "venv", "/opt/medae"]
WORKDIR /src
COPY constraints.txt ./
RUN ["pip", "install", "-c", "constraints.txt", "hatchling"]
# as much of the project as its dependencies can be read from: a change of code installs none of them again
COPY pyproject.toml README.md LICENSE ./
COPY medae/__init__.py medae/
COPY services/medae_service/__init__.py services/medae_service/
COPY configs configs

# ---- torch without CUDA comes from its own index: the one on PyPI brings the CUDA libraries along
FROM build AS build-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install -c constraints.txt --no-deps --index-url "${TORCH_INDEX}" torch \
 && pip install -c constraints.txt --no-build-isolation .
COPY . .
RUN ["pip", "install", "--no-deps", "--no-build-isolation", "--force-reinstall", "."]

# ---- torch with the CUDA libraries that its wheel names; the driver is the host's
FROM build AS build-gpu
RUN ["pip", "install", "-c", "constraints.txt", "--no-build-isolation", "."]
COPY . .
RUN ["pip", "install", "--no-deps", "--no-build-isolation", "--force-reinstall", "."]

# ---- what runs: no compiler, no pip cache, no root
FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="medae" \
      org.opencontainers.image.description="Segments, restores and scores medical images over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 medae \
 && useradd --uid 10001 --gid medae --no-create-home --home-dir /tmp --shell /usr/sbin/nologin medae
# all that is written goes to /tmp, which may be a tmpfs; the root may be read-only
ENV PATH=/opt/medae/bin:$PATH \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1
WORKDIR /models
USER 10001:10001
EXPOSE 3000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:3000/livez', timeout=4)"]
ENTRYPOINT ["medae"]
CMD ["serve", "--host", "0.0.0.0", "--port", "3000", "--token-file", "/run/secrets/medae_token", "--config", "/etc/medae/service.yaml"]

FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /opt/medae /opt/medae

FROM runtime AS cpu
COPY --from=build-cpu /opt/medae /opt/medae
