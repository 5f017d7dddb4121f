# The function of examples/lambda_function.py as an image for AWS Lambda; stage 0 is in it.
#
#     docker build -f examples/container/lambda.Dockerfile --build-arg REPO=org/pwl-vit --build-arg REVISION=COMMIT -t pwl-vit .
#
# From the root of a clone. With a commit's hash as REVISION it starts without asking the Hub anything.
FROM public.ecr.aws/lambda/python:3.12
ARG REPO
ARG REVISION=main
# Of a model of sounds: runtime,audio.
ARG EXTRAS=runtime

COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY pwl_hf /src/pwl_hf
COPY modeling /src/modeling
COPY training /src/training
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[$EXTRAS]"
COPY examples/lambda_function.py ${LAMBDA_TASK_ROOT}/lambda_function.py

RUN HF_HOME=/baked pwl-hf download "$REPO" --revision "$REVISION" --stage 0
ENV PWL_REPO=$REPO PWL_REVISION=$REVISION PWL_BAKED=/baked HF_HOME=/tmp/huggingface
CMD ["lambda_function.handler"]
