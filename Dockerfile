# The image of mcp-proxy: a virtual environment on a slim Python, and nothing else.
#
#   docker build -t mcp-proxy .                                  the proxy
#   docker build -t mcp-proxy-demo --build-arg EXTRAS=demo .     the example servers, too (compose.yaml)
#
# Rules of this file: what runs is in the last stage, and gets there by one COPY; every version is pinned
# (base image by digest, packages by constraints.txt); no dependency is compiled or runs code to be built; no step
# leaves a time, a cache or an address behind, so that two builds of one commit are the same bytes. A mirror of the
# package index is a secret of the build, never part of it: --secret id=pip.conf,src=FILE
#
# The digest is the multi-platform index of the tag, as recorded by the publisher of the image:
# https://github.com/docker-library/repo-info/blob/422f3cfe488dc9ae394c5058b27db617f72c91db/repos/python/remote/3.13.15-slim.md
# (python:3.13.15-slim is python:3.13.15-slim-trixie). To renew it: docs/container.md, "The base image".
ARG PYTHON_IMAGE=docker.io/library/python:3.13.15-slim-trixie@sha256:881d80734ee05dca6f7f42dcb080975652a53c7eda9ba1f03bb8da31aa6a6ec2

# --- wheels, and the environment that is made of them -----------------------------------------------
FROM ${PYTHON_IMAGE} AS build
# Of the package; without "load" and "demo", which are no part of a proxy.
ARG EXTRAS=dns,http2,kubernetes,otlp
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_INPUT=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONHASHSEED=0
WORKDIR /src

# Dependencies first: they change less often than the source, which is here only as its version.
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY mcp_proxy/__init__.py mcp_proxy/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --quiet --constraint constraints.txt pip hatchling \
    && /opt/build/bin/python -m pip wheel --quiet --only-binary :all: --no-build-isolation \
        --constraint constraints.txt --wheel-dir /wheels ".[${EXTRAS}]" \
    && rm /wheels/mcp_reverse_proxy-*.whl

# From here on nothing comes from the network.
COPY mcp_proxy mcp_proxy
COPY scripts/sbom.py /opt/build/
RUN /opt/build/bin/python -m pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/mcp-proxy \
    && /opt/build/bin/python -m pip --python /opt/mcp-proxy/bin/python install --quiet --no-compile \
        --no-index --find-links /wheels "mcp-reverse-proxy[${EXTRAS}]" \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/mcp-proxy/lib \
    && /opt/build/bin/python /opt/build/sbom.py mcp-reverse-proxy /opt/mcp-proxy/lib/python3.*/site-packages /wheels \
        >/opt/mcp-proxy/sbom.cdx.json

# --- the image ----------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE}
# The base image has no bytecode, and with a root file system that is read-only none would ever be written: a
# start would compile the standard library each time. What is for developers only is left out.
RUN printf 'mcp-proxy:x:10001:\n' >>/etc/group \
    && printf 'mcp-proxy:x:10001:10001:mcp-proxy:/nonexistent:/usr/sbin/nologin\n' >>/etc/passwd \
    && PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 python -m compileall -q --invalidation-mode unchecked-hash \
        -x '/(site-packages|dist-packages|ensurepip|idlelib|lib2to3|pydoc_data|test|tkinter|turtledemo)/' \
        "$(python -B -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /opt/mcp-proxy /opt/mcp-proxy

ENV PATH=/opt/mcp-proxy/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8080 9901
# Drains: docs/operations.md, "Stopping the proxy". Give it more time than limits.drain_delay and limits.drain.
STOPSIGNAL SIGTERM
ENTRYPOINT ["mcp-proxy"]
CMD ["serve", "--config", "/etc/mcp-proxy/proxy.yaml"]

# Last, because they change with every commit.
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mcp-proxy" \
      org.opencontainers.image.description="A low-level Streamable HTTP reverse proxy for MCP servers" \
      org.opencontainers.image.source="https://github.com/mcp-proxy/mcp-proxy" \
      org.opencontainers.image.documentation="https://github.com/mcp-proxy/mcp-proxy/blob/main/docs/container.md" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13.15-slim-trixie" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      io.github.mcp-proxy.sbom="/opt/mcp-proxy/sbom.cdx.json" \
      io.github.mcp-proxy.sbom.type="application/vnd.cyclonedx+json; version=1.6"
