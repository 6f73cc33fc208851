# The locked environment as an image: docker build -t maximalcai .   (flash-attn for an H100: half an hour to hours)
# The caches are mounted, not copied, so no layer holds them; what is downloaded once is there for the next build.
FROM ubuntu:22.04

# What the set-up needs to start; everything that matters is locked.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 researcher \
    && install -d -o researcher -g researcher /opt/maximalcai /opt/environment /home/researcher/.cache

USER 1000
WORKDIR /opt/maximalcai
COPY --chown=researcher environment.yml conda-lock.yml requirements.txt ./
COPY --chown=researcher locks locks
COPY --chown=researcher scripts scripts

ARG BACKEND=conda
ARG ARCH=90
RUN --mount=type=cache,target=/home/researcher/.cache,uid=1000,gid=1000 \
    scripts/setup_runpod_environment.sh --backend "$BACKEND" --prefix /opt/environment/maximalcai --arch "$ARCH"

ENV PATH=/opt/environment/maximalcai/bin:$PATH
CMD ["python", "scripts/verify_environment.py"]
