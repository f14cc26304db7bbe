"""``sidecar verify-billing``: tries the whole system against a Lago and an OpenMeter, and compares their books.

* ``command``: options; ``options``: what they come to
* ``names``: the names that a run gives, by which it finds its own again
* ``own_lago``: a client that sees nothing but the run's own
* ``provisioning``, ``cleaning``: what a run makes there, and how it is taken away
* ``rig``: a gateway and a control plane, with what a scenario does and reads through them
* ``scenario``: the shape of a scenario; ``scenarios``: all of them; ``trial``: runs them; ``report``: the table
"""
