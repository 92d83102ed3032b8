// The words that dropout takes on the CPU, for a test.
#include "cpu/philox.h"

extern "C" [[gnu::visibility("default")]] void philox_words(uint32_t* words, int64_t first_row,
                                                            int64_t row_step, int64_t rows,
                                                            int64_t first_quad, int64_t quads,
                                                            uint32_t site, int64_t seed) {
  ssept::cpu::philox_words(words, {first_row, row_step, rows, first_quad, quads}, site, seed);
}

extern "C" [[gnu::visibility("default")]] int64_t slack() { return ssept::cpu::kPhiloxSlack; }
