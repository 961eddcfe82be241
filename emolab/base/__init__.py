"""What every room uses: errors, labels and their colours, files that are whole or absent, intervals, tables."""
