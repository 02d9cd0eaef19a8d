<<<<<<< HEAD
"""What breaks systems of this kind, tried on real programs."""
=======
"""Situations that broke others, and attacks, against real programs."""
>>>>>>> 58ec1d8 (A folder of snapshots or archive that cannot be written is logged, counted and tried again: learning, publishing and the join go on)
