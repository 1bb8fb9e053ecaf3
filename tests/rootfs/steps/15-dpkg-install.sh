# The same by dpkg directly, and a capability that `setcap` stores in security.capability.
dpkg --install /debs/attr_*.deb /debs/libcap2-bin_*.deb
cp /bin/ping /usr/local/bin/probe 2>/dev/null || cp /bin/sleep /usr/local/bin/probe
setcap cap_net_raw=ep /usr/local/bin/probe
getcap /usr/local/bin/probe
setfattr -n user.origin -v step15 /usr/local/bin/probe /etc/issue
