# qgraph as a command in a container, with its kernels compiled:
#   docker build -t qgraph .
#   docker run --rm -v "$PWD:/work" qgraph quantize model.onnx -o small.onnx
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir /src && rm -rf /src
ENV NUMBA_CACHE_DIR=/opt/qgraph
RUN qgraph warmup && chmod -R a+rwX /opt/qgraph
WORKDIR /work
ENTRYPOINT ["qgraph"]
