# Directories of the lower, of the upper, and merged ones, moved and moved back; a name used again.
mv /usr/share/perl5 /usr/share/perl5.moved
mkdir /usr/share/perl5
echo mine >/usr/share/perl5/mine
mv /etc/apt /opt/apt
mv /opt/apt /etc/apt
mv /usr/local/src/greet /srv/greet
mv /usr/share/bash-completion /usr/local/share/
mv /usr/local/share/bash-completion /usr/share/completion
mv /etc/skel/.bashrc /etc/skel/.profile
mv /var/lib/dpkg/info/tar.list /var/lib/dpkg/info/zzz.list
mv /var/lib/dpkg/info/zzz.list /var/lib/dpkg/info/tar.list
