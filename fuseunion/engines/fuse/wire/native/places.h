/* Tables with one place for each number, which a later one may take. */

#ifndef FUSEUNION_PLACES_H
#define FUSEUNION_PLACES_H

#include <stddef.h>
#include <stdint.h>

/* The place of a number in a table of so many places, a power of two: the upper bits of a product (Knuth, The Art of
 * Computer Programming 3, 6.4), because neighbours are asked for one after the other. */
static inline size_t place_in(uint64_t number, size_t places)
{
    return (size_t)((number * 0x9E3779B97F4A7C15u) >> (64 - __builtin_ctzll(places)));
}

#endif
