"""Where stages run: storage, artifacts, the local runner and the record a report is made from."""
