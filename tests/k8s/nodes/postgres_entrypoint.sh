# Stands in for the entry point of the official PostgreSQL image: the first start makes the cluster, its superuser and its
# database from POSTGRES_USER, POSTGRES_PASSWORD (or _FILE), POSTGRES_DB and PGDATA; then the server is what runs.
set -eu
user=${POSTGRES_USER:-postgres}
if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE"); fi
: "${POSTGRES_PASSWORD:?must be set}"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    mkdir -p "$PGDATA"
    chmod 0700 "$PGDATA"
    secret=$(mktemp)
    printf '%s\n' "$POSTGRES_PASSWORD" >"$secret"
    initdb --pgdata="$PGDATA" --username="$user" --pwfile="$secret" --auth=scram-sha-256 --encoding=UTF8 ${POSTGRES_INITDB_ARGS:-}
    rm "$secret"
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    database=${POSTGRES_DB:-$user}
    if [ "$database" != postgres ]; then
        echo "CREATE DATABASE \"$database\";" | postgres --single -D "$PGDATA" postgres
    fi
fi
unset POSTGRES_PASSWORD
if [ "${1#-}" != "$1" ]; then set -- postgres "$@"; fi
exec "$@" -c listen_addresses='*'
