# What differs in every run and says nothing about the filesystem.
rm -rf /var/log/* /var/cache/apt/*.bin /var/lib/apt/lists/* /tmp/* /var/tmp/*
