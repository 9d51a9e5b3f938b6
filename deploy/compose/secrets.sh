#!/bin/sh
# Makes the secrets that compose.yaml names, unless they are there. They never belong into a repository.
set -eu
cd "$(dirname "$0")"
# Compose mounts these files as they are, and a node reads them as user 7700: the folder keeps others out, not the files.
mkdir -p secrets
chmod 700 secrets
make_secret() {
    [ -s "secrets/$1" ] && return
    printf '%s\n' "$2" >"secrets/$1"
    chmod 444 "secrets/$1"
}
make_secret cluster-secret "$(openssl rand -hex 32)"
make_secret token "$(openssl rand -hex 32)"
# Access key and secret key of the stand-in for S3.
make_secret s3-key "amberblob,$(openssl rand -hex 20)"
