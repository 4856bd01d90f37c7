"""What a student tells about the data of its teacher."""
