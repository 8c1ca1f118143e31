"""How exchanged knowledge is protected on its way, what is guaranteed, and the ledger of it."""
