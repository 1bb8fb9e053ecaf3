# Removal by the package manager, and a package installed again over what was removed.
export DEBIAN_FRONTEND=noninteractive
apt-get -q --yes purge cron hello
apt-get -q --yes --no-install-recommends install hello
test "$(hello)" = "Hello, world!"
dpkg --verify hello
dpkg --audit
