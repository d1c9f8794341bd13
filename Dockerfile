# One image for every service of the fleet; docker-compose.yml says which command each runs.
FROM python:3.13-slim AS build

RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/specfarm && /opt/specfarm/bin/pip install --no-cache-dir 'uv>=0.8'

WORKDIR /src
COPY requirements.lock .
RUN /opt/specfarm/bin/uv pip install --no-cache --python /opt/specfarm/bin/python \
    --require-hashes -r requirements.lock

COPY . .
RUN /opt/specfarm/bin/uv pip install --no-cache --python /opt/specfarm/bin/python --no-deps .

# The code is compiled for the processor that builds the image. For an image that travels to other
# machines: --build-arg CMAKE_ARGS=-DGGML_NATIVE=OFF
ARG CMAKE_ARGS=""
# Elsewhere than in the source folder, so that the installed package is what runs.
WORKDIR /
# The mount keeps the wheel when a change of the source makes this layer again.
RUN --mount=type=cache,target=/var/cache/specfarm \
    CMAKE_ARGS="$CMAKE_ARGS" FARM_CACHE=/var/cache/specfarm \
    /opt/specfarm/bin/python -m farm.builds.wheel


FROM python:3.13-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 farm \
    && install -d -o farm -g farm /var/lib/specfarm
COPY --from=build /opt/specfarm /opt/specfarm

ENV PATH=/opt/specfarm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FARM_HOME=/var/lib/specfarm \
    FARM_CACHE=/var/lib/specfarm/cache
USER farm
WORKDIR /var/lib/specfarm
VOLUME /var/lib/specfarm
ENTRYPOINT ["farm"]
