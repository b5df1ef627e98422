"""Papers, pages, notes and code: from bytes to blocks, from blocks to passages. Pure; what is read is untrusted."""
