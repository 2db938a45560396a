"""`farebox bench`: load for a running gateway, paid for, with the books checked afterwards."""
