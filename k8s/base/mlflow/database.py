"""The schema of MLflow's database: `migrate` brings it to the installed version, `wait` waits until somebody has.

Both parts of it, what is tracked and who may log in, are in the one database of `MLFLOW_BACKEND_STORE_URI`.
`mlflow db upgrade` wants the address, with its password, on the command line; so its functions are called here.
"""

import os
import sys
import time

import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from mlflow.exceptions import MlflowException
from mlflow.server.auth.db import utils as auth
from mlflow.store.db import utils as tracking


def migrate(engine: sqlalchemy.Engine) -> None:
    """Bring both schemas to what the installed MLflow wants; makes them where there are none."""
    if tracking._is_empty_database(engine):
        tracking._initialize_tables(engine)
    else:
        tracking._upgrade_db(engine)
    auth.migrate(engine, "head")


def difference(engine: sqlalchemy.Engine) -> str | None:
    """What keeps the installed MLflow from using the database; None where nothing does."""
    try:
        tracking._verify_schema(engine)
        scripts = ScriptDirectory.from_config(auth._get_alembic_config(""))
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": "alembic_version_auth"})
            found, wanted = context.get_current_revision(), scripts.get_current_head()
    except MlflowException as error:
        return str(error)
    except sqlalchemy.exc.OperationalError as error:
        return f"the database cannot be reached: {error.orig}"
    return None if found == wanted else f"accounts are at schema {found}, and {wanted} is needed"


def main(action: str) -> int:
    """Do one or the other."""
    engine = tracking.create_sqlalchemy_engine(os.environ["MLFLOW_BACKEND_STORE_URI"])
    if action == "migrate":
        migrate(engine)
        print("the schema is that of the installed MLflow", flush=True)
        return 0
    while reason := difference(engine):
        print(f"waiting for the Job mlflow-migrate: {reason}", flush=True)
        time.sleep(3)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
