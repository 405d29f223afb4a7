#!/bin/sh
# Makes the passwords and keys of docker-compose.yml, once. What is there stays; what is half there is completed.
set -eu
umask 077
place=/etc/aggregator

# Write standard input to a file, whole or not at all.
keep() {
    cat >"$1.new"
    chmod "$2" "$1.new"
    mv "$1.new" "$1"
}

# usage: password FILE    made up, unless it is there
# An image of somebody else reads it, under a user number of its own. Nobody else mounts its volume.
password() {
    if [ ! -s "$1" ]; then
        made=$(python -c 'import secrets; print(secrets.token_urlsafe(32))')
        printf '%s' "$made" | keep "$1" 444
    fi
}

# usage: key NAME OPTION...    a key of that name, unless it is there
key() {
    if [ ! -s "$place/clients/$1" ]; then
        made=$(aggregator keys create "$@" --path "$place/keyring/keys.json")
        printf '%s' "$made" | keep "$place/clients/$1" 400
    fi
}

password "$place/database/password"
if [ ! -s "$place/database/url" ]; then
    printf 'postgresql://aggregator:%s@postgres:5432/aggregator' "$(cat "$place/database/password")" |
        keep "$place/database/url" 400
fi
password "$place/grafana/password"
key ingest --role ingest
key operator --role operator --payloads
echo "Passwords and keys are in their volumes."
