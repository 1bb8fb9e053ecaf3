# Files changed where they are: appended, cut, overwritten in the middle, replaced by an editor's rename.
echo '# edited' >>/etc/bash.bashrc
sed -i 's/root/ROOT/' /etc/motd /etc/issue
: >/etc/securetty || true
truncate -s 100 /etc/services 2>/dev/null || truncate -s 100 /usr/share/common-licenses/GPL-3
dd if=/dev/zero of=/usr/share/common-licenses/GPL-2 bs=1 seek=5000 count=10 conv=notrunc 2>/dev/null
perl -pi -e 's/^/> / if $. < 3' /etc/login.defs
touch -d '2001-02-03 04:05:06.789 UTC' /usr/share/common-licenses/BSD
ln /etc/hosts /etc/hosts.link 2>/dev/null || ln /etc/passwd /etc/passwd.link
ln -s /nowhere /etc/dangling
mkfifo /run/queue
# Both names of a lower hard-link group: one is written, the other must show it (perl is one of a pair in Debian).
echo >>/usr/bin/perl
perl5=$(ls /usr/bin/perl5.[0-9]*)
cmp /usr/bin/perl "$perl5" || echo "names of one file differ"
