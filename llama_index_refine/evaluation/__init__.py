"""The benchmark: data sets, peers, teachers, metrics and the runs that join them."""
