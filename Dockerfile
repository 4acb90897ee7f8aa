# CUDA: docker build -t aa-clip . && docker run --gpus all -v /data:/data -v "$PWD/ckpt:/app/ckpt" aa-clip train.py
# torch's wheels bring their own CUDA libraries: the host needs a driver and NVIDIA's container toolkit, nothing more.
FROM python:3.12-slim

WORKDIR /app
COPY requirements.txt .
RUN python -m pip install --no-cache-dir -r requirements.txt
COPY . .
RUN useradd --create-home app && mkdir -p ckpt runs && chown app . ckpt runs
USER app
ENV AACLIP_DATA=/data PYTHONUNBUFFERED=1
# Weights: -v /path/ViT-L-14-336px.pt:/app/model/ViT-L-14-336px.pt, or let open_clip download them.
ENTRYPOINT ["python"]
CMD ["train.py", "--help"]
