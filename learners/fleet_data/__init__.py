"""What a device and its fleet exchange: segments of experience, the queue of the uplink, the Parquet log, and signed policies."""
