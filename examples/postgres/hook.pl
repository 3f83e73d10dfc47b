# GET http://127.0.0.1:8081/ answers with the generation that PostgreSQL runs, and how many lines of its files it does
# not follow: a value that it refuses, one that needs a restart, a rule for clients that it cannot read.
use strict;
use warnings;
use IO::Socket::INET;

my $query = q{
    SELECT current_setting('trimtab.generation', true),
           (SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL)
         + (SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL)
};
my @psql = ('psql', '-XAtqF ', '-h', '/run/postgresql', '-U', 'postgres', '-c', $query);

my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1:8081', Listen => 8, ReuseAddr => 1) or die "8081: $!\n";
$SIG{PIPE} = 'IGNORE';
$SIG{TERM} = sub { exit 0 };
while (my $client = $server->accept) {
    while (defined(my $line = <$client>)) { last if $line =~ /^\r?$/ }
    my $answer = '';
    if (open(my $psql, '-|', @psql)) {
        $answer = <$psql> // '';
        close($psql) or $answer = '';
    }
    chomp $answer;
    my $status = $answer ne '' ? '200 OK' : '503 Service Unavailable';
    print $client "HTTP/1.1 $status\r\nContent-Length: ", length $answer, "\r\nConnection: close\r\n\r\n$answer";
    close $client;
}
