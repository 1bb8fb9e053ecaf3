# A large lower directory goes, and comes back nearly empty: nothing below may show through.
rm -r /usr/share/doc
test ! -e /usr/share/doc
mkdir -p /usr/share/doc/base-files
test -z "$(ls -A /usr/share/doc/base-files)"
echo new >/usr/share/doc/base-files/copyright
rm -r /usr/share/man /usr/share/locale
mkdir /usr/share/man
rm /etc/issue.net /etc/debian_version
