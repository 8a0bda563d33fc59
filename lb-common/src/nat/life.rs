//! What a packet of either side does to the entry and to the translation of a flow of mode `nat` or `dnat`. Pure.
