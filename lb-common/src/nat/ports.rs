//! SNAT ports: how a flow comes to one, and gives it back.
