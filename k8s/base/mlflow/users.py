"""The account that pipelines use: made where it is missing, and given the password of its Secret where it has another.

It is nobody's administrator: it manages the experiments and models that it makes, and reads the others.
"""

import os

from mlflow.exceptions import RestException
from mlflow.server import get_app_client


def main() -> None:
    """Make or correct it, speaking as the administrator of `MLFLOW_TRACKING_USERNAME`."""
    name, password = os.environ["CLIENT_USERNAME"], os.environ["CLIENT_PASSWORD"]
    client = get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    try:
        client.create_user(name, password)
        print(f"made the account {name}", flush=True)
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        client.update_user_password(name, password)
        print(f"gave the account {name} the password of its Secret", flush=True)


if __name__ == "__main__":
    main()
