"""Find before a start what would keep the daemon from running, without hardware and without a broker."""
