"""Print the Secrets that the local overlay needs, with random values: `python3 k8s/dev_secrets.py | kubectl apply -f -`.

For a laptop. Run it once: a second run makes other values, which a database that is already there will not take.
Needs nothing but Python. Into a file, write it where only you can read it (`umask 077`). `secrets.example.yaml` says what each value
is for, and production brings its own.
"""

import json
import secrets
from collections.abc import Mapping

NAMESPACE = "unlearning"


def values() -> dict[str, dict[str, str]]:
    """Random values by Secret and key; letters and digits only, as some become part of an address."""
    database, key_id, key = secrets.token_hex(16), secrets.token_hex(10), secrets.token_hex(20)
    address = f"postgresql+psycopg2://mlflow:{database}@postgres:5432/mlflow"
    return {
        "unlearn": {"auth_token": secrets.token_hex(32)},
        "champion": {"GRUN_API_KEY": secrets.token_hex(24)},
        "postgres": {"POSTGRES_USER": "mlflow", "POSTGRES_PASSWORD": database, "POSTGRES_DB": "mlflow"},
        "object-store": {"s3.json": json.dumps(_identities(key_id, key))},
        "mlflow-server": {
            "MLFLOW_BACKEND_STORE_URI": address,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_hex(16),
            "AWS_ACCESS_KEY_ID": key_id,
            "AWS_SECRET_ACCESS_KEY": key,
        },
        "mlflow-auth": {"basic_auth.ini": f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {address}\n"},
        "mlflow-client": {"MLFLOW_TRACKING_USERNAME": "grun", "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(16)},
    }


def _identities(key_id: str, key: str) -> Mapping[str, object]:
    """Who may do what in the object store, as SeaweedFS reads it."""
    credentials = [{"accessKey": key_id, "secretKey": key}]
    return {
        "identities": [{"name": "mlflow", "credentials": credentials, "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]
    }


def documents() -> list[dict[str, object]]:
    """The Secrets as Kubernetes takes them."""
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "stringData": data}
        for name, data in values().items()
    ]


if __name__ == "__main__":
    print("\n---\n".join(json.dumps(document, indent=2) for document in documents()))
