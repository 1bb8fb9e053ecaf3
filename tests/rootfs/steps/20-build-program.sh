# A small C program of two objects and a static library, made and run.
mkdir -p /usr/local/src/greet
cd /usr/local/src/greet
cat >greet.c <<'C'
#include <stdio.h>
void greet(const char *name) { printf("hello, %s\n", name); }
C
cat >main.c <<'C'
void greet(const char *);
int main(int argc, char **argv) { greet(argc > 1 ? argv[1] : "world"); return 0; }
C
gcc -O1 -c greet.c
gcc -O1 -c main.c
ar rcD libgreet.a greet.o
gcc -o /usr/local/bin/greet main.o -L. -lgreet
test "$(greet union)" = "hello, union"
ln /usr/local/bin/greet /usr/local/bin/greet-again
