#!/usr/bin/env bash
# Installs the named Debian packages that are missing, where this user may; elsewhere says in one line what to install.
set -u
command -v dpkg-query >/dev/null || { echo "Not Debian: install the equivalents of: $*"; exit 0; }
missing=()
for package in "$@"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ]; then sudo=(); elif sudo -n true 2>/dev/null; then sudo=(sudo -n); else
  echo "Please install: sudo apt-get install ${missing[*]}"
  exit 0
fi
echo "Installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get update -qq >/dev/null
"${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null \
  || { echo "Could not install: ${missing[*]}; install them by hand"; exit 1; }
