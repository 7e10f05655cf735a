"""bertfast.batch.layout"""
