/* The next request: looked for during a while, because to be woken takes longer than most answers.
 *
 * sched_yield(2) lets others have our core meanwhile: at once who had less of it than we, and only after 10 to 50
 * microseconds who had more (kernel/sched/fair.c: he is not eligible). So where who asks us shares our core, and computes
 * more than we do, we look in vain for him whom we keep from asking. That he shares it is seen from when requests come:
 * always after a turn of somebody else, and never while we look.
 */

#define _GNU_SOURCE
#include "looking.h"

#include "../data/waiting.h"
#include "../state.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    GIVEN = 1500,        /* nanoseconds: a sched_yield(2) that took longer let somebody else run */
    SHARES_CORE = 8,     /* so many requests in a row came after such a turn: who asks shares our core */
    KEPT_LONG = 8000,    /* nanoseconds for which he waits in the mean until he has it: to be woken takes less */
    PROBES = 64,         /* so often we sleep at once then, before it is looked at again */
    LONG_TURN = 500000,  /* nanoseconds of a turn that is longer than what a request takes */
    CROWDED = 100000000, /* and for how many whoever had it is believed to want more */
};

static int64_t crowded_until; /* CLOCK_MONOTONIC */
static unsigned shared_turns; /* requests in a row that came after a turn of somebody else */
static int64_t kept;          /* nanoseconds before that turn, mean of the last */
static unsigned sleeps;       /* how often we slept at once for that */

/* For how long who shares our core had to wait for it. One long wait does not count for much, because he may have been
 * busy elsewhere; a probe does, because there are few. */
static void note_kept(int64_t nanoseconds, bool probe)
{
    const int64_t counted = nanoseconds < 2 * KEPT_LONG ? nanoseconds : 2 * KEPT_LONG;
    kept = shared_turns == 0 ? 0 : kept + (counted - kept) / (probe ? 2 : 8);
}

/* Look for a request for a while, and let whoever needs the core have it. Who had it for long will want it again, and the
 * scheduler lets him, because we take all that we are given: so there is no looking then for some time. A thread of ours
 * (data/waiting.c) does not: what fsync(2) has to do is done when it has been. */
static ssize_t look_for_request(int64_t patience)
{
    const int64_t begin = now(), end = begin + patience;
    int64_t before = begin, given = 0; /* when somebody else got the core */
    ssize_t got;
    const bool in_vain = shared_turns >= SHARES_CORE && kept > KEPT_LONG;
    if (begin < crowded_until || (in_vain && ++sleeps % PROBES != 0)) {
        errno = EAGAIN;
        return -1;
    }
    const bool may_be_ours = unanswered() > 0;
    do {
        sched_yield();
        const int64_t after = now(), turn = after - before;
        if (turn > LONG_TURN && !may_be_ours)
            crowded_until = after + CROWDED;
        if (turn > GIVEN && given == 0)
            given = before;
        before = device.clock = after;
        got = read(device.fd, device.buffer, BUFFER_SIZE);
        if (got >= 0)
            shared_turns = turn > GIVEN ? shared_turns + 1 : 0;
    } while (got < 0 && errno == EAGAIN && before < end && before >= crowded_until && !is_told());
    note_kept((given != 0 ? given : before) - begin, in_vain);
    return got;
}

ssize_t read_request(int64_t patience, int64_t sleep)
{
    ssize_t got = read(device.fd, device.buffer, BUFFER_SIZE);
    if (got >= 0 || errno != EAGAIN || (patience <= 0 && sleep <= 0))
        return got;
    int error = EAGAIN;
    Py_BEGIN_ALLOW_THREADS
    if (patience > 0) {
        got = look_for_request(patience);
        error = errno;
    }
    if (got < 0 && error == EAGAIN && sleep > 0) {
        struct pollfd waiting[] = {{.fd = device.fd, .events = POLLIN}, {.fd = device.told, .events = POLLIN}};
        const struct timespec most = {.tv_sec = sleep / SECOND, .tv_nsec = sleep % SECOND};
        if (ppoll(waiting, 2, &most, NULL) >= 0) {
            eventfd_t count;
            if (waiting[1].revents != 0 && !is_told()) /* they were found before it was written */
                eventfd_read(device.told, &count);
            device.clock = now();
            got = read(device.fd, device.buffer, BUFFER_SIZE);
        }
        error = errno;
    }
    Py_END_ALLOW_THREADS
    errno = error;
    return got;
}
