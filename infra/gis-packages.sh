#!/usr/bin/env bash
# The clients that `make test-gis` checks our files with, from Debian or Ubuntu: QGIS for Python, GDAL's tools, Chromium.
set -euo pipefail
packages=(python3-qgis qgis-providers gdal-bin chromium)
missing=()
for package in "${packages[@]}"; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "install first: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
