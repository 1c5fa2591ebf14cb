"""Make the bucket that MLflow keeps artifacts in, where it is missing: no S3 client does that by itself."""

import os
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


def main() -> None:
    """Make the bucket of `MLFLOW_ARTIFACTS_DESTINATION`."""
    bucket = urlsplit(os.environ["MLFLOW_ARTIFACTS_DESTINATION"]).netloc
    store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"], config=Config(s3={"addressing_style": "path"}))
    try:
        store.create_bucket(Bucket=bucket)
        print(f"made the bucket {bucket}", flush=True)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
        print(f"the bucket {bucket} is there", flush=True)


if __name__ == "__main__":
    main()
