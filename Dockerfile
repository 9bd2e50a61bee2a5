# The orchestrator and every verb; `compose.yaml` beside this file adds PostgreSQL. torch's wheels bring CUDA's libraries with them: 7 GB in all.
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/dreamkiln
COPY . .
RUN pip install --no-cache-dir "setuptools>=77" wheel \
    && pip install --no-cache-dir -c constraints.txt torch torchvision \
    && pip install --no-cache-dir --no-build-isolation -c constraints.txt .
RUN useradd --create-home kiln
USER kiln
WORKDIR /home/kiln
ENTRYPOINT ["dreamkiln"]
CMD ["--help"]
