"""Seeds made of a seed: as many streams of random numbers as a run needs, unrelated to one another."""


def mix(*words: int) -> int:
    """Hash integers to a 63-bit seed (splitmix64's finaliser), so that neighbouring keys are unrelated."""
    state = 0x9E3779B97F4A7C15
    for word in words:
        state = (state ^ (int(word) & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF
