"""Files by name in one place, a folder or a bucket, behind one small interface; and claims that hold a name."""
