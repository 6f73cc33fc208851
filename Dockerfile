# The locked environment as an image: docker build -t maximalcai .   (flash-attn is compiled where no prebuilt wheel fits)
#   --build-arg ENVIRONMENT=current                        the environment of environments/current
#   --build-arg BACKEND=pip --build-arg FLASH_ATTN=none    from PyPI; there is no nvcc then, so no flash-attn where no wheel fits
#   --target pod --build-arg BASE=runpod/base:TAG          on RunPod's base, whose start script brings SSH and Jupyter
# The caches are mounted, not copied, so no layer holds them; what is downloaded once is there for the next build.
ARG BASE=ubuntu:jammy-20260901.2@sha256:b8b6ee6aa931ecd9d0d952abc34dc0e5f7c6a30c6bb71b079fe399fde0329c02
ARG ENVIRONMENT=default

FROM ${BASE} AS base
ARG BACKEND=conda
# What the set-up needs to start; everything that matters is locked. The conda backend brings what torch.compile needs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl python3 python3-pip \
    && if [ "$BACKEND" = pip ]; then apt-get install --yes --no-install-recommends g++ python3-dev; fi \
    && rm -rf /var/lib/apt/lists/* \
    && if ! getent passwd 1000; then useradd --create-home --uid 1000 researcher; fi \
    && install -d -o 1000 -g 1000 /opt/maximalcai /opt/environment
WORKDIR /opt/maximalcai

# The locks of one environment: the other's can change without a new layer of gigabytes.
FROM base AS locks-default
COPY --chown=1000:1000 environment.yml conda-lock.yml requirements.txt ./
COPY --chown=1000:1000 locks locks

FROM base AS locks-current
COPY --chown=1000:1000 locks/tools.txt locks/tools.txt
COPY --chown=1000:1000 environments/current environments/current

# hadolint ignore=DL3006
FROM locks-${ENVIRONMENT} AS installed
WORKDIR /opt/maximalcai
ARG ENVIRONMENT
ARG BACKEND=conda
ARG ARCH=90
ARG FLASH_ATTN=auto
# The files that the set-up runs, which ends with the verifier. Locking is not among them: a change of
# scripts/lockedenv/lock makes no new layer of gigabytes.
COPY --chown=1000:1000 scripts/setup_runpod_environment.sh scripts/verify_environment.py scripts/
COPY --chown=1000:1000 scripts/lockedenv/*.py scripts/lockedenv/
COPY --chown=1000:1000 scripts/lockedenv/backends scripts/lockedenv/backends
COPY --chown=1000:1000 scripts/lockedenv/cli scripts/lockedenv/cli
COPY --chown=1000:1000 scripts/lockedenv/host scripts/lockedenv/host
COPY --chown=1000:1000 scripts/lockedenv/install scripts/lockedenv/install
COPY --chown=1000:1000 scripts/lockedenv/pod scripts/lockedenv/pod
COPY --chown=1000:1000 scripts/lockedenv/prefix scripts/lockedenv/prefix
COPY --chown=1000:1000 scripts/lockedenv/provenance scripts/lockedenv/provenance
COPY --chown=1000:1000 scripts/lockedenv/schemas scripts/lockedenv/schemas
COPY --chown=1000:1000 scripts/lockedenv/spec scripts/lockedenv/spec
COPY --chown=1000:1000 scripts/lockedenv/verify scripts/lockedenv/verify
USER 1000
RUN --mount=type=cache,target=/var/cache/maximalcai,uid=1000,gid=1000 \
    HOME=/var/cache/maximalcai scripts/setup_runpod_environment.sh --cache /var/cache/maximalcai \
    --environment "$ENVIRONMENT" --backend "$BACKEND" --prefix /opt/environment/maximalcai \
    --arch "$ARCH" --flash-attn "$FLASH_ATTN"

# What changes often, in layers of kilobytes.
FROM installed AS complete
WORKDIR /opt/maximalcai
COPY --chown=1000:1000 README.md LICENSE environment.yml conda-lock.yml requirements.txt ./
COPY --chown=1000:1000 locks locks
COPY --chown=1000:1000 environments environments
COPY --chown=1000:1000 scripts scripts
HEALTHCHECK --interval=1h --timeout=5m --start-period=5m \
    CMD ["/opt/environment/maximalcai/bin/python", "/opt/maximalcai/scripts/verify_environment.py", "--level", "quick"]
ARG ENVIRONMENT
ARG LOCK_DIGEST=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="maximalcai" \
      org.opencontainers.image.licenses="BSD-3-Clause" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.revision="$REVISION" \
      maximalcai.environment="$ENVIRONMENT" \
      maximalcai.lock-digest="$LOCK_DIGEST"

# On RunPod's base, as root and with the base's own command, /start.sh. That starts Jupyter with the base's `python`, and ends if
# there is none: so PATH stays as it is, and a shell enters the environment. The script puts the pod's variables, PATH among
# them, into /etc/rp_environment, which must be read first; it adds no second line that reads it.
FROM complete AS pod
# hadolint ignore=DL3002
USER 0
RUN printf '%s\n' 'if [ -e /etc/rp_environment ]; then source /etc/rp_environment; fi' \
    'source /opt/environment/maximalcai/activate' >>/root/.bashrc
WORKDIR /

# On a plain base: the command that is asked for, or the verifier.
FROM complete AS image
ENV PATH=/opt/environment/maximalcai/bin:$PATH
CMD ["python", "scripts/verify_environment.py"]
