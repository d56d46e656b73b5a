#!/bin/bash
# Build a Debian package from a wheel: `configs/deb.sh dist/reflexd-0.1.0-py3-none-any.whl dist`. It installs the systemd unit, a
# settings file that runs in shadow mode, and the wheel with the hashes of all packages. Its installation asks nothing. It makes a
# virtual environment in /opt/reflexd, for which it needs the network; without one it names the command that tries again.
set -euo pipefail
wheel=$1 out=$2
here=$(dirname "$(realpath "$0")")
version=$(basename "$wheel" | cut -d- -f2)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
share=$root/usr/share/reflexd unit=$root/usr/lib/systemd/system/reflexd.service
install -Dm644 -t "$share" "$wheel" "$here"/../constraints{-build,-cpu,,-cuda}.txt
install -Dm644 "$here/deb/reflexd.yaml" "$root/etc/reflexd/reflexd.yaml"
install -Dm755 "$here/deb/install-environment" "$root/usr/lib/reflexd/install-environment"
install -d "$(dirname "$unit")" "$root/usr/bin" "$root/DEBIAN"
sed -e 's|@REFLEXD@|/opt/reflexd/bin/reflexd|; s|@CONFIG@|/etc/reflexd/reflexd.yaml|; s|@CREDENTIALS@|# none|' \
  "$here/systemd/reflexd.service" > "$unit"
ln -s /opt/reflexd/bin/reflexd "$root/usr/bin/reflexd"
echo /etc/reflexd/reflexd.yaml > "$root/DEBIAN/conffiles"
install -m755 -t "$root/DEBIAN" "$here"/deb/{postinst,prerm,postrm}
cat > "$root/DEBIAN/control" <<CONTROL
Package: reflexd
Version: $version
Architecture: all
Maintainer: reflexd <reflexd@localhost>
Depends: python3 (>= 3.11), python3-venv, mosquitto, libportaudio2, libgl1, libglib2.0-0
Section: misc
Priority: optional
Description: reflexes that keep learning
 A daemon that watches cameras, microphones, text and telemetry, acts over MQTT,
 and learns from rewards, corrections and demonstrations.
CONTROL
mkdir -p "$out"
dpkg-deb --root-owner-group --build "$root" "$out/reflexd_${version}_all.deb"
