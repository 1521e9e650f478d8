"""Latencies counted in buckets: a fixed amount of memory, however long they are measured.

A bucket is a power of two cut into 32 parts, so that what is read from it is at most 1/32 too high, as HdrHistogram does it.
"""

PARTS_BITS = 5


class Latencies:
    """Counts of latencies in nanoseconds."""

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.max_ns = 0

    def add(self, latency_ns: int) -> None:
        """Counts one."""
        bucket = _bucket(latency_ns)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.max_ns = max(self.max_ns, latency_ns)

    def merged(self, other: "Latencies") -> "Latencies":
        """Both together."""
        both = Latencies()
        for one in (self, other):
            for bucket, count in one._buckets.items():
                both._buckets[bucket] = both._buckets.get(bucket, 0) + count
            both.count += one.count
            both.max_ns = max(both.max_ns, one.max_ns)
        return both

    def percentile_ns(self, percent: float) -> int:
        """The latency that `percent` of all do not exceed; 0 if there are none."""
        rank, seen = self.count * percent / 100, 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return min(_upper_ns(bucket), self.max_ns)
        return self.max_ns


def _bucket(latency_ns: int) -> int:
    """Buckets are in the order of what they hold: exponent first, then the bits behind the leading one."""
    assert latency_ns >= 0, latency_ns
    shift = max(0, latency_ns.bit_length() - PARTS_BITS - 1)
    return (shift << (PARTS_BITS + 1)) | (latency_ns >> shift)


def _upper_ns(bucket: int) -> int:
    """The greatest latency that the bucket holds."""
    shift, leading = bucket >> (PARTS_BITS + 1), bucket & ((2 << PARTS_BITS) - 1)
    return ((leading + 1) << shift) - 1
