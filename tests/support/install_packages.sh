#!/usr/bin/env bash
# Installs what the tests need of Debian where that is allowed (root, apt-get), and says in one line what it could not.
# One name a line in debian-packages.txt, beside this file.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

missing=()
while read -r package; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done <"$here/debian-packages.txt"
((${#missing[@]})) || exit 0

if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "not installed, so what needs them is skipped: ${missing[*]}"
    [[ -z "${ROSE_HPC_NO_SKIP:-}" ]]
    exit
fi
export DEBIAN_FRONTEND=noninteractive
echo "installing ${missing[*]}"
apt-get update -qq
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
